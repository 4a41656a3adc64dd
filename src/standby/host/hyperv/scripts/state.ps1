# How VMs stand now: operations under way, a job asked about, settings and snapshots with their disks, reference points.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $vm = @(Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem -Filter "Name='$($one.id)'")
    $job = @()
    if ($one.job) { $job = @(Get-CimInstance -Namespace $ns -ClassName Msvm_ConcreteJob -Filter "InstanceID='$($one.job)'") }
    $settings = @()
    $points = @()
    $applied = @()
    if ($vm.Count -gt 0) {
      $settings = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='$($one.id)'")
      $points = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemReferencePoint -Filter "VirtualSystemIdentifier='$($one.id)'")
      $applied = @(Get-CimAssociatedInstance -InputObject $vm[0] -Association Msvm_LastAppliedSnapshot -ResultClassName Msvm_VirtualSystemSettingData)
    }
    @{
      found = $vm.Count -gt 0
      status = @($vm | ForEach-Object { $_.OperationalStatus })
      enabled = @($vm | ForEach-Object { $_.EnabledState })
      job = @($job | Select-Object -Property InstanceID, JobState, ErrorCode, ErrorDescription)
      applied = @($applied | ForEach-Object { $_.InstanceID })
      points = @($points | Select-Object -Property InstanceID, ReferencePointType, VirtualDiskIdentifiers, ResilientChangeTrackingIdentifiers)
      settings = @(foreach ($setting in $settings) {
        @{
          InstanceID = $setting.InstanceID
          VirtualSystemType = $setting.VirtualSystemType
          ElementName = $setting.ElementName
          CreationTime = $setting.CreationTime
          disks = @(Get-CimAssociatedInstance -InputObject $setting -ResultClassName Msvm_StorageAllocationSettingData |
            Select-Object -Property InstanceID, ResourceSubType, HostResource, Parent, AddressOnParent)
        }
      })
    }
  }
}
