# How much the VMs wrote since their checkpoints: the size of each file they write to, the room where it lies, what is under way.
param($request)
$images = Get-CimInstance -Namespace $ns -ClassName Msvm_ImageManagementService
foreach ($one in $request.machines) {
  Step $one.id {
    $vm = Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem -Filter "Name='$($one.id)'"
    $live = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='$($one.id)'" |
      Where-Object { $_.VirtualSystemType -eq 'Microsoft:Hyper-V:System:Realized' })
    $disks = @($live | ForEach-Object { Get-CimAssociatedInstance -InputObject $_ -ResultClassName Msvm_StorageAllocationSettingData } |
      Where-Object { $_.ResourceSubType -eq 'Microsoft:Hyper-V:Virtual Hard Disk' })
    @{
      status = @($vm | ForEach-Object { $_.OperationalStatus })
      leaves = @(foreach ($disk in $disks) {
        $path = $disk.HostResource[0]
        $state = Invoke-CimMethod -InputObject $images -MethodName GetVirtualHardDiskState -Arguments @{ Path = $path }
        $volume = Get-Volume -FilePath $path
        @{ id = $disk.InstanceID; path = $path; code = $state.ReturnValue; text = $state.State; free = $volume.SizeRemaining }
      })
    }
  }
}
