# Whether VMs run, and whether their guests answer.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $vm = @(Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem -Filter "Name='$($one.id)'")
    $beats = @(Get-CimInstance -Namespace $ns -ClassName Msvm_HeartbeatComponent -Filter "SystemName='$($one.id)'")
    @{
      enabled = @($vm | ForEach-Object { $_.EnabledState })
      integration = @($beats | ForEach-Object { $_.EnabledState })
      heartbeat = @($beats | ForEach-Object { $_.OperationalStatus })
    }
  }
}
