# What VMs do by themselves: start with the host, take checkpoints; and their notes, where those are to change.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $vm = Get-VM -Id $one.id
    $null = Set-VM -VM $vm -AutomaticStartAction $one.start -CheckpointType $one.checkpoints
    if ($one.changes_notes) { $null = Set-VM -VM $vm -Notes $one.notes }
    @{ state = 'done' }
  }
}
