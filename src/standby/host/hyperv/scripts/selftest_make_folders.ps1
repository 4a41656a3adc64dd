# Makes folders of the self-test, and those above them.
param($request)
foreach ($one in $request.folders) {
  Step $one.id {
    $null = [IO.Directory]::CreateDirectory($one.path)
    @{ names = @($one.path) }
  }
}
