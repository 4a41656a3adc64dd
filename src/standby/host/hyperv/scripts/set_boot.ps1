# Gives VMs of generation 2 the order of their boot sources: the texts that were read, in another order.
param($request)
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemManagementService
foreach ($one in $request.machines) {
  Step $one.id {
    $live = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='$($one.id)'" |
      Where-Object { $_.VirtualSystemType -eq 'Microsoft:Hyper-V:System:Realized' })[0]
    $live.BootSourceOrder = @($one.order)
    Finish (Invoke-CimMethod -InputObject $service -MethodName ModifySystemSettings -Arguments @{ SystemSettings = (ToText $live) }) $one.wait_s
  }
}
