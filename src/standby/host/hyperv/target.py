"""A Hyper-V host as the target of a job: makes, changes, starts, stops and looks at replica VMs.

Movers do all file work in the folder of replicas, as on a folder host; this owns only what the
host itself has to do. Replica VMs are found by their notes (`standby-replica:<replica id>`), which
are there from the moment the VM is, for they are part of what DefineSystem is given: one that was
half made when its maker died is found and completed, and a VM of the same name without our note is
never touched.

What is used of a host (all VMs of a request in one script):

    read    machines.ps1, as on the source side: what VMs are like, what they are attached to
            Msvm_ComputerSystem.EnabledState; Msvm_HeartbeatComponent.OperationalStatus, .EnabledState
            Get-VMHostSupportedVersion; Get-Volume -FilePath; [IO.File]::GetAttributes(file)
    make    Msvm_VirtualSystemManagementService.DefineSystem(SystemSettings, no ResourceSettings):
              Msvm_VirtualSystemSettingData made with New-CimInstance -ClientOnly: ElementName, Notes,
              VirtualSystemSubType, Version, ConfigurationDataRoot, SnapshotDataRoot,
              SuspendDataRoot, SwapFileDataRoot, AutomaticStartupAction 2 (none), UserSnapshotType 2
              (disabled); no adapter, no SCSI controller and no drive comes with it
    change  ModifySystemSettings(the VM's settings as read, documented read/write properties
              assigned): BIOSGUID, BIOSSerialNumber, BaseBoardSerialNumber, ChassisSerialNumber,
              ChassisAssetTag, BootOrder, BootSourceOrder (the same texts in another order),
              SecureBootEnabled, SecureBootTemplateId, UserSnapshotType, AutomaticSnapshotsEnabled
            AddResourceSettings(settings, [embedded instances made with -ClientOnly]):
              Msvm_ResourceAllocationSettingData (ResourceType 6, ResourceSubType
              'Microsoft:Hyper-V:Synthetic SCSI Controller', VirtualSystemIdentifiers);
              Msvm_SyntheticEthernetPortSettingData (ResourceType 10, ResourceSubType
              'Microsoft:Hyper-V:Synthetic Ethernet Port', ElementName, Address, StaticMacAddress,
              VirtualSystemIdentifiers)
            RemoveResourceSettings([the instances]) of controllers that nothing hangs on
            AddBootSourceSettings(settings, [Msvm_BootSourceSettingData: BootSourceType,
              BootSourceDescription, FirmwareDevicePath, OtherLocation]): entries of files
            Set-VM -VM -AutomaticStartAction -AutomaticStopAction -CheckpointType
            Set-VMProcessor -VM -Count -CompatibilityForMigrationEnabled
              -ExposeVirtualizationExtensions
            Set-VMMemory -VM -DynamicMemoryEnabled -StartupBytes -MinimumBytes -MaximumBytes
            Get-VMHardDiskDrive, Add-VMHardDiskDrive -VM -ControllerType -ControllerNumber
              -ControllerLocation -Path -AllowUnverifiedPaths; Set-VMHardDiskDrive
              -VMHardDiskDrive -Path -AllowUnverifiedPaths; Remove-VMHardDiskDrive -VMHardDiskDrive
            Get-VMNetworkAdapter -VM (their Id is the InstanceID of their settings);
              Add-VMNetworkAdapter -VM -IsLegacy -Name -Passthru; Remove-VMNetworkAdapter,
              Rename-VMNetworkAdapter, Set-VMNetworkAdapter -StaticMacAddress or -DynamicMacAddress,
              Connect-VMNetworkAdapter -SwitchName, Disconnect-VMNetworkAdapter,
              Set-VMNetworkAdapterVlan -Access -VlanId or -Untagged: all with -VMNetworkAdapter
    power   Msvm_ComputerSystem.RequestStateChange(2 on, 3 off);
            Msvm_ShutdownComponent.InitiateShutdown(Force, Reason)
    remove  DestroySystem: the configuration, never a disk
    files   New-VHD -Path -ParentPath -Differencing; icacls.exe FOLDER /grant *SID:(OI)(CI)F
"""
