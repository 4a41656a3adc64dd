# Gives roles a priority and starts those that are not online.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $groups = @(Get-ClusterGroup -VMId $one.id)
    foreach ($group in $groups) {
      $group.Priority = $one.priority
      if ("$($group.State)" -ne 'Online') { $null = Start-ClusterGroup -Name $group.Name -Wait $one.wait_s }
    }
    $groups = @(Get-ClusterGroup -VMId $one.id)
    @{
      problem = ''
      roles = @($groups | ForEach-Object { @{ name = $_.Name; node = $_.OwnerNode.Name; state = "$($_.State)"; priority = $_.Priority } })
    }
  }
}
