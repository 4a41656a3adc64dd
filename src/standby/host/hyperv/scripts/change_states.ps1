# Turns VMs on (2) or off (3) that are not so already.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $vm = @(Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem -Filter "Name='$($one.id)'")
    if ($vm.Count -eq 0) { return @{ state = 'gone' } }
    if ($vm[0].EnabledState -eq $one.wanted) { return @{ state = 'done' } }
    Finish (Invoke-CimMethod -InputObject $vm[0] -MethodName RequestStateChange -Arguments @{ RequestedState = [uint16]$one.wanted }) $one.wait_s
  }
}
