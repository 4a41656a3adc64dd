# Takes VMs out of their cluster; each stays a VM of its node. One that is no role is well.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $groups = @()
    try { $groups = @(Get-ClusterGroup -VMId $one.id) } catch { $groups = @() }
    if ($groups.Count -gt 0) { Remove-ClusterGroup -VMId $one.id -RemoveResources -Force }
    @{ problem = ''; roles = @() }
  }
}
