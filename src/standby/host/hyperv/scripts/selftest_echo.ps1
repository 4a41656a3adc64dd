# Says back what it is given: whether texts of any length and any letter come through.
param($request)
Step 'host' { @{ texts = @($request.texts) } }
