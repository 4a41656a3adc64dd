# Destroys the reference points of a VM that are named by InstanceID, and no other; one that is gone is well.
param($request)
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemReferencePointService
foreach ($one in $request.machines) {
  Step $one.id {
    $there = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemReferencePoint -Filter "VirtualSystemIdentifier='$($one.id)'")
    $left = @()
    foreach ($point in @($there | Where-Object { $one.points -contains $_.InstanceID })) {
      $end = Finish (Invoke-CimMethod -InputObject $service -MethodName DestroyReferencePoint -Arguments @{ AffectedReferencePoint = $point }) $one.wait_s
      if ($end.state -ne 'done') { $left += $point.InstanceID }
    }
    $vm = Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem -Filter "Name='$($one.id)'"
    @{ found = $null -ne $vm; left = @($left) }
  }
}
