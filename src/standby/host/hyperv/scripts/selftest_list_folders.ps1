# The folders of self-tests that are in a folder.
param($request)
foreach ($one in $request.folders) {
  Step $one.id {
    if (-not [IO.Directory]::Exists($one.path)) { return @{ names = @() } }
    @{ names = @([IO.Directory]::GetDirectories($one.path, 'standby-selftest-*')) }
  }
}
