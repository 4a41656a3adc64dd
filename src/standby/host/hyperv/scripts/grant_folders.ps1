# Lets the worker processes of VMs into folders; everything that is made in them inherits it.
param($request)
foreach ($one in $request.folders) {
  Step $one.id {
    $said = @(icacls.exe $one.path '/grant' "*$($one.sid):(OI)(CI)F" '/q')
    @{ code = $LASTEXITCODE; said = @($said | ForEach-Object { "$_" }) }
  }
}
