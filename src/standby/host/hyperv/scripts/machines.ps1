# Every VM of the host: what each class says, row by row; Python joins the rows by their InstanceID.
param($request)
function Rows {
  param($Class, $Names)
  Get-CimInstance -Namespace $ns -ClassName $Class -Property $Names | Select-Object -Property $Names
}
Step 'host' {
  @{
    computers = @(Rows -Class Msvm_ComputerSystem -Names Name, ElementName, EnabledState, OperationalStatus,
      ReplicationMode, ReplicationState, FailedOverReplicationType)
    settings = @(Rows -Class Msvm_VirtualSystemSettingData -Names InstanceID, ElementName, VirtualSystemIdentifier,
      VirtualSystemType, VirtualSystemSubType, CreationTime, Version, Notes, ConfigurationDataRoot, IsSaved,
      BIOSGUID, BIOSSerialNumber, BaseBoardSerialNumber, ChassisSerialNumber, ChassisAssetTag, BootOrder,
      BootSourceOrder, SecureBootEnabled, SecureBootTemplateId, AutomaticStartupAction, AutomaticShutdownAction,
      UserSnapshotType)
    storage = @(Rows -Class Msvm_StorageAllocationSettingData -Names InstanceID, ResourceType, ResourceSubType,
      HostResource, Parent, AddressOnParent, PersistentReservationsSupported)
    resources = @(Rows -Class Msvm_ResourceAllocationSettingData -Names InstanceID, ResourceType, ResourceSubType,
      HostResource, Parent, Address, AddressOnParent, VirtualSystemIdentifiers)
    memory = @(Rows -Class Msvm_MemorySettingData -Names InstanceID, VirtualQuantity, Reservation, Limit,
      DynamicMemoryEnabled)
    processors = @(Rows -Class Msvm_ProcessorSettingData -Names InstanceID, VirtualQuantity, LimitProcessorFeatures,
      ExposeVirtualizationExtensions)
    adapters = @(Rows -Class Msvm_SyntheticEthernetPortSettingData -Names InstanceID, ElementName, Address,
      StaticMacAddress, VirtualSystemIdentifiers)
    legacy_adapters = @(Rows -Class Msvm_EmulatedEthernetPortSettingData -Names InstanceID, ElementName, Address,
      StaticMacAddress, VirtualSystemIdentifiers)
    connections = @(Rows -Class Msvm_EthernetPortAllocationSettingData -Names InstanceID, Parent, HostResource,
      EnabledState, LastKnownSwitchName)
    vlans = @(Rows -Class Msvm_EthernetSwitchPortVlanSettingData -Names InstanceID, OperationMode, AccessVlanId)
    switches = @(Rows -Class Msvm_VirtualEthernetSwitch -Names Name, ElementName)
    boot = @(Rows -Class Msvm_BootSourceSettingData -Names InstanceID, BootSourceType, BootSourceDescription,
      FirmwareDevicePath, OtherLocation)
    security = @(Rows -Class Msvm_SecuritySettingData -Names InstanceID, TpmEnabled, ShieldingRequested)
    heartbeats = @(Rows -Class Msvm_HeartbeatComponentSettingData -Names InstanceID, EnabledState)
    backups = @(Rows -Class Msvm_VssComponentSettingData -Names InstanceID, EnabledState)
    still = @(Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem -Property Name | ForEach-Object { $_.Name })
  }
}
