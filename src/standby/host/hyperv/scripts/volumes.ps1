# How much room is left where folders are.
param($request)
foreach ($one in $request.folders) {
  Step $one.id {
    $volume = Get-Volume -FilePath $one.path
    @{ free = $volume.SizeRemaining }
  }
}
