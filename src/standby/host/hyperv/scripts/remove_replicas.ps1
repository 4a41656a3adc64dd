# Removes the configuration of VMs that are off and still have the note; never a disk.
param($request)
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemManagementService
foreach ($one in $request.machines) {
  Step $one.id {
    $vm = @(Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem -Filter "Name='$($one.id)'")
    if ($vm.Count -eq 0) { return @{ state = 'gone' } }
    Finish (Invoke-CimMethod -InputObject $service -MethodName DestroySystem -Arguments @{ AffectedSystem = $vm[0] }) $one.wait_s
  }
}
