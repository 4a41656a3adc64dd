# Takes SCSI controllers away that nothing hangs on, then adds some, in order, with the ids a guest knows them by.
param($request)
$class = Get-CimClass -Namespace $ns -ClassName Msvm_ResourceAllocationSettingData
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemManagementService
foreach ($one in $request.machines) {
  Step $one.id {
    $live = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='$($one.id)'" |
      Where-Object { $_.VirtualSystemType -eq 'Microsoft:Hyper-V:System:Realized' })[0]
    $there = @(Get-CimAssociatedInstance -InputObject $live -ResultClassName Msvm_ResourceAllocationSettingData)
    $gone = @($there | Where-Object { $one.remove -contains $_.InstanceID })
    if ($gone.Count -gt 0) {
      $null = Finish (Invoke-CimMethod -InputObject $service -MethodName RemoveResourceSettings -Arguments @{ ResourceSettings = $gone }) $one.wait_s
    }
    foreach ($wanted in $one.add) {
      $values = @{ ResourceType = [uint16]6; ResourceSubType = 'Microsoft:Hyper-V:Synthetic SCSI Controller' }
      if (@($wanted.identifiers).Count -gt 0) { $values['VirtualSystemIdentifiers'] = @($wanted.identifiers) }
      $text = ToText (New-CimInstance -ClientOnly -CimClass $class -Property $values)
      $null = Finish (Invoke-CimMethod -InputObject $service -MethodName AddResourceSettings -Arguments @{
        AffectedConfiguration = $live; ResourceSettings = @($text) }) $one.wait_s
    }
    @{ state = 'done' }
  }
}
