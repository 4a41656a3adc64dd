# Makes VMs of this node roles of its cluster where they are none, and gives them a priority (0: never started by the cluster).
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $groups = @()
    try { $groups = @(Get-ClusterGroup -VMId $one.id) } catch { $groups = @() }
    if ($groups.Count -eq 0) { $groups = @(Add-ClusterVirtualMachineRole -VMId $one.id) }
    foreach ($group in $groups) { $group.Priority = $one.priority }
    @{
      problem = ''
      roles = @($groups | ForEach-Object { @{ name = $_.Name; node = $_.OwnerNode.Name; state = "$($_.State)"; priority = $_.Priority } })
    }
  }
}
