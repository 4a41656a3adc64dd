# Configuration versions of VMs that the host runs.
param($request)
Step 'host' { @{ versions = @(Get-VMHostSupportedVersion | ForEach-Object { "$($_.Version)" }) } }
