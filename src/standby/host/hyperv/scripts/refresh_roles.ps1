# Tells the cluster that the hardware of VMs changed, so that other nodes see them as they are. One that is no role is well.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $groups = @()
    try { $groups = @(Get-ClusterGroup -VMId $one.id) } catch { $groups = @() }
    if ($groups.Count -gt 0) { $null = Update-ClusterVirtualMachineConfiguration -VMId $one.id }
    @{ problem = ''; roles = @() }
  }
}
