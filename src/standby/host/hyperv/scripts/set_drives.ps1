# Attaches files to controller places of VMs, whatever is there; a place without a file is emptied.
param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    $vm = Get-VM -Id $one.id
    foreach ($disk in $one.disks) {
      $there = @(Get-VMHardDiskDrive -VM $vm -ControllerType $disk.type -ControllerNumber $disk.number -ControllerLocation $disk.location)
      if (-not $disk.file) {
        foreach ($drive in $there) { $null = Remove-VMHardDiskDrive -VMHardDiskDrive $drive }
      } elseif ($there.Count -gt 0) {
        $null = Set-VMHardDiskDrive -VMHardDiskDrive $there[0] -Path $disk.file
      } else {
        $null = Add-VMHardDiskDrive -VM $vm -ControllerType $disk.type -ControllerNumber $disk.number -ControllerLocation $disk.location -Path $disk.file
      }
    }
    @{ state = 'done' }
  }
}
