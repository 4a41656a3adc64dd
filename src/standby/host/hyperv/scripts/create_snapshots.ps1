# Makes a recovery snapshot of each VM that stands as when its intent was recorded. In rounds: all of one begin, then all are waited for.
param($request)
$class = Get-CimClass -Namespace $ns -ClassName Msvm_VirtualSystemSnapshotSettingData
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSnapshotService
$has_copy = @($class.CimClassProperties | Where-Object { $_.Name -eq 'GuestBackupType' }).Count -gt 0
$started = @{}
$before = @{}
$failed = @{}
foreach ($round in $request.rounds) {
  $these = @($request.machines | Where-Object { $_.round -eq $round })
  foreach ($one in $these) {
    try {
      $vm = @(Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem -Filter "Name='$($one.id)'")
      $there = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='$($one.id)'")
      $new = @($there | Where-Object { $_.VirtualSystemType -like '*:Snapshot:Recovery' -and $one.known -notcontains $_.InstanceID })
      $busy = @($vm | ForEach-Object { $_.OperationalStatus } | Where-Object { $_ -ge 32768 })
      if ($vm.Count -eq 0 -or $busy.Count -gt 0 -or $new.Count -gt 0) { continue }
      $points = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemReferencePoint -Filter "VirtualSystemIdentifier='$($one.id)'")
      $applied = @(Get-CimAssociatedInstance -InputObject $vm[0] -Association Msvm_LastAppliedSnapshot -ResultClassName Msvm_VirtualSystemSettingData)
      $before[$one.id] = @{ enabled = @($vm[0].EnabledState); applied = @($applied | ForEach-Object { $_.InstanceID }); points = @($points | ForEach-Object { $_.InstanceID }) }
      $values = @{ ConsistencyLevel = [byte]$one.level; IgnoreNonSnapshottableDisks = $true }
      if ($one.copy -and $has_copy) { $values['GuestBackupType'] = [byte]2 }
      $setting = ToText (New-CimInstance -ClientOnly -CimClass $class -Property $values)
      $started[$one.id] = Invoke-CimMethod -InputObject $service -MethodName CreateSnapshot -Arguments @{ AffectedSystem = $vm[0]; SnapshotSettings = $setting; SnapshotType = [uint16]32768 }
    } catch { $failed[$one.id] = $_ }
  }
  foreach ($one in $these) {
    Step $one.id {
      if ($failed.ContainsKey($one.id)) { throw $failed[$one.id] }
      if (-not $started.ContainsKey($one.id)) { return @{ state = 'changed' } }
      $end = Finish $started[$one.id] $one.wait_s
      $made = @()
      if ($end.job -and $end.state -eq 'done') { $made = @(Get-CimAssociatedInstance -InputObject $started[$one.id].Job -ResultClassName Msvm_VirtualSystemSettingData) }
      $disks = @($made | ForEach-Object { Get-CimAssociatedInstance -InputObject $_ -ResultClassName Msvm_StorageAllocationSettingData })
      @{ state = $end.state; job = $end.job; is_copy = $one.copy -and $has_copy; before = $before[$one.id]; snapshots = @($made | ForEach-Object { $_.InstanceID })
        disks = @($disks | Select-Object -Property InstanceID, ResourceSubType, HostResource, Parent, AddressOnParent) }
    }
  }
}
