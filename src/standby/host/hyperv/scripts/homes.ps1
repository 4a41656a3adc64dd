# Which of these VMs are on this node: in a cluster a VM is shown by the node that it is on, and no other.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $vm = Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem -Filter "Name='$($one.id)'"
    @{ found = $null -ne $vm }
  }
}
