# Takes network adapters away and adds some, unconnected, with the ids a guest knows them by.
param($request)
$class = Get-CimClass -Namespace $ns -ClassName Msvm_SyntheticEthernetPortSettingData
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemManagementService
foreach ($one in $request.machines) {
  Step $one.id {
    $vm = Get-VM -Id $one.id
    $live = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='$($one.id)'" |
      Where-Object { $_.VirtualSystemType -eq 'Microsoft:Hyper-V:System:Realized' })[0]
    foreach ($adapter in @(Get-VMNetworkAdapter -VM $vm | Where-Object { $one.remove -contains $_.Id })) {
      $null = Remove-VMNetworkAdapter -VMNetworkAdapter $adapter
    }
    foreach ($wanted in $one.add) {
      if ($wanted.legacy) { $null = Add-VMNetworkAdapter -VM $vm -IsLegacy $true -Name $wanted.name } else {
        $values = @{ ResourceType = [uint16]10; ResourceSubType = 'Microsoft:Hyper-V:Synthetic Ethernet Port'; ElementName = $wanted.name }
        if (@($wanted.identifiers).Count -gt 0) { $values['VirtualSystemIdentifiers'] = @($wanted.identifiers) }
        if ($wanted.mac) {
          $values['Address'] = $wanted.mac
          $values['StaticMacAddress'] = $true
        }
        $text = ToText (New-CimInstance -ClientOnly -CimClass $class -Property $values)
        $null = Finish (Invoke-CimMethod -InputObject $service -MethodName AddResourceSettings -Arguments @{
          AffectedConfiguration = $live; ResourceSettings = @($text) }) $one.wait_s
      }
    }
    @{ state = 'done' }
  }
}
