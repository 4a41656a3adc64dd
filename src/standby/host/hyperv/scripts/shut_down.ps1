# Asks the guests of VMs to shut down.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $component = @(Get-CimInstance -Namespace $ns -ClassName Msvm_ShutdownComponent -Filter "SystemName='$($one.id)'")
    if ($component.Count -eq 0) { return @{ code = -1 } }
    $begun = Invoke-CimMethod -InputObject $component[0] -MethodName InitiateShutdown -Arguments @{ Force = $one.force; Reason = $one.reason }
    @{ code = $begun.ReturnValue }
  }
}
