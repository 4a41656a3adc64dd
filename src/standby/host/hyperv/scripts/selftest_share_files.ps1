# Opens files for reading, as a mover does, where others may read and write them meanwhile; their sizes.
param($request)
foreach ($one in $request.files) {
  Step $one.id {
    $file = [IO.File]::Open($one.path, [IO.FileMode]::Open, [IO.FileAccess]::Read, [IO.FileShare]::ReadWrite)
    $size = $file.Length
    $file.Dispose()
    @{ size = $size }
  }
}
