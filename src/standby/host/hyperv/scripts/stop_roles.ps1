# Stops roles that are not offline: the VM ends as `action` says (0 turned off, 2 shut down, 3 shut down by force), not saved.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $groups = @(Get-ClusterGroup -VMId $one.id)
    $machines = @(Get-ClusterResource -VMId $one.id | Where-Object { $_.ResourceType.Name -eq 'Virtual Machine' })
    foreach ($resource in $machines) { Set-ClusterParameter -InputObject $resource -Name OfflineAction -Value $one.action }
    foreach ($group in $groups) {
      if ("$($group.State)" -ne 'Offline') { $null = Stop-ClusterGroup -Name $group.Name -Wait $one.wait_s }
      $group.Priority = $one.priority
    }
    $groups = @(Get-ClusterGroup -VMId $one.id)
    @{
      problem = ''
      roles = @($groups | ForEach-Object { @{ name = $_.Name; node = $_.OwnerNode.Name; state = "$($_.State)"; priority = $_.Priority } })
    }
  }
}
