# Makes empty disk files of their own, where no mover sees the folder.
param($request)
foreach ($one in $request.files) {
  Step $one.id {
    $null = New-VHD -Path $one.path -SizeBytes ([uint64]$one.size) -Dynamic
    @{ names = @($one.path) }
  }
}
