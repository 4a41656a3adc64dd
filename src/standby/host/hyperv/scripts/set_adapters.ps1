# Gives network adapters their names, MAC addresses, switches and VLANs.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $there = @(Get-VMNetworkAdapter -VM (Get-VM -Id $one.id))
    foreach ($wanted in $one.adapters) {
      foreach ($adapter in @($there | Where-Object { $_.Id -eq $wanted.instance })) {
        if ($wanted.rename) { $null = Rename-VMNetworkAdapter -VMNetworkAdapter $adapter -NewName $wanted.name }
        if ($wanted.mac) { $null = Set-VMNetworkAdapter -VMNetworkAdapter $adapter -StaticMacAddress $wanted.mac }
        else { $null = Set-VMNetworkAdapter -VMNetworkAdapter $adapter -DynamicMacAddress }
        if ($wanted.switch) { $null = Connect-VMNetworkAdapter -VMNetworkAdapter $adapter -SwitchName $wanted.switch }
        else { $null = Disconnect-VMNetworkAdapter -VMNetworkAdapter $adapter }
        if ($wanted.vlan -gt 0) { $null = Set-VMNetworkAdapterVlan -VMNetworkAdapter $adapter -Access -VlanId $wanted.vlan }
        else { $null = Set-VMNetworkAdapterVlan -VMNetworkAdapter $adapter -Untagged }
      }
    }
    @{ state = 'done' }
  }
}
