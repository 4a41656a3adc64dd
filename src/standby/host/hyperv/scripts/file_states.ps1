# Attributes of files: Hyper-V starts no VM from a sparse, compressed or encrypted one.
param($request)
foreach ($one in $request.files) {
  Step $one.id { @{ attributes = [int][IO.File]::GetAttributes($one.path) } }
}
