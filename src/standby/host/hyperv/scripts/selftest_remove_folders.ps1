# Removes folders of self-tests with all that is in them; no other one, whatever is asked.
param($request)
foreach ($one in $request.folders) {
  Step $one.id {
    if ($one.path -notlike '*\standby-selftest-????????') { throw "$($one.path) is no folder of a self-test" }
    if ([IO.Directory]::Exists($one.path)) { [IO.Directory]::Delete($one.path, $true) }
    @{ names = @() }
  }
}
