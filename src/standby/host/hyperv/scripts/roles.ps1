# The roles that VMs are in this node's cluster: on which node, in which state. A VM that is none has what the host says.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $groups = @()
    $problem = ''
    try { $groups = @(Get-ClusterGroup -VMId $one.id) } catch { $problem = "$($_.Exception.Message)" }
    @{
      problem = $problem
      roles = @($groups | ForEach-Object { @{ name = $_.Name; node = $_.OwnerNode.Name; state = "$($_.State)"; priority = $_.Priority } })
    }
  }
}
