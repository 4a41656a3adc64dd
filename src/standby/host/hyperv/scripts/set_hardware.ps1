# Gives VMs that are off their processors, memory, firmware and automatic actions.
param($request)
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemManagementService
foreach ($one in $request.machines) {
  Step $one.id {
    $vm = Get-VM -Id $one.id
    $null = Set-VMProcessor -VM $vm -Count $one.processors -CompatibilityForMigrationEnabled $one.compatible -ExposeVirtualizationExtensions $one.nested
    if ($one.dynamic) { $null = Set-VMMemory -VM $vm -DynamicMemoryEnabled $true -StartupBytes $one.startup -MinimumBytes $one.minimum -MaximumBytes $one.maximum }
    else { $null = Set-VMMemory -VM $vm -DynamicMemoryEnabled $false -StartupBytes $one.startup }
    $null = Set-VM -VM $vm -AutomaticStartAction Nothing -AutomaticStopAction $one.stop -CheckpointType Disabled
    $live = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='$($one.id)'" |
      Where-Object { $_.VirtualSystemType -eq 'Microsoft:Hyper-V:System:Realized' })[0]
    if ($one.bios_guid) { $live.BIOSGUID = $one.bios_guid }
    if ($one.bios_serial) { $live.BIOSSerialNumber = $one.bios_serial }
    if ($one.base_board_serial) { $live.BaseBoardSerialNumber = $one.base_board_serial }
    if ($one.chassis_serial) { $live.ChassisSerialNumber = $one.chassis_serial }
    if ($one.chassis_asset_tag) { $live.ChassisAssetTag = $one.chassis_asset_tag }
    if ($one.generation -eq 2) {
      $live.SecureBootEnabled = $one.secure_boot
      if ($one.secure_boot_template) { $live.SecureBootTemplateId = $one.secure_boot_template }
    }
    if (@($one.boot_codes).Count -gt 0) { $live.BootOrder = @($one.boot_codes | ForEach-Object { [uint16]$_ }) }
    Finish (Invoke-CimMethod -InputObject $service -MethodName ModifySystemSettings -Arguments @{ SystemSettings = (ToText $live) }) $one.wait_s
  }
}
