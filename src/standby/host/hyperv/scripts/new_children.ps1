# Makes empty children of disk files, where they are not there.
param($request)
foreach ($one in $request.files) {
  Step $one.id {
    $null = New-VHD -Path $one.path -ParentPath $one.parent -Differencing
    @{ state = 'done' }
  }
}
