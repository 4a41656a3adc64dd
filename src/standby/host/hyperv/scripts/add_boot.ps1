# Adds boot sources that are files of a disk (a guest's own loaders), as the firmware of the source had them.
param($request)
$class = Get-CimClass -Namespace $ns -ClassName Msvm_BootSourceSettingData
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemManagementService
foreach ($one in $request.machines) {
  Step $one.id {
    $live = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='$($one.id)'" |
      Where-Object { $_.VirtualSystemType -eq 'Microsoft:Hyper-V:System:Realized' })[0]
    foreach ($wanted in $one.sources) {
      $text = ToText (New-CimInstance -ClientOnly -CimClass $class -Property @{ BootSourceType = [uint32]$wanted.type
        BootSourceDescription = $wanted.description; FirmwareDevicePath = $wanted.path; OtherLocation = $wanted.location })
      $null = Finish (Invoke-CimMethod -InputObject $service -MethodName AddBootSourceSettings -Arguments @{
        AffectedConfiguration = $live; BootSourceSettings = @($text) }) $one.wait_s
    }
    @{ state = 'done' }
  }
}
