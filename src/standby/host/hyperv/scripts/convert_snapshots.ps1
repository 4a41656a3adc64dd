# Converts recovery snapshots, by InstanceID, to reference points; Hyper-V merges what the VM wrote meanwhile.
param($request)
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSnapshotService
$started = @{}
$failed = @{}
foreach ($one in $request.machines) {
  try {
    $snapshot = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "InstanceID='$($one.snapshot)'"
    if ($null -ne $snapshot) {
      $started[$one.id] = Invoke-CimMethod -InputObject $service -MethodName ConvertToReferencePoint -Arguments @{ AffectedSnapshot = $snapshot }
    }
  } catch { $failed[$one.id] = $_ }
}
foreach ($one in $request.machines) {
  Step $one.id {
    if ($failed.ContainsKey($one.id)) { throw $failed[$one.id] }
    if (-not $started.ContainsKey($one.id)) { return @{ state = 'gone' } }
    $end = Finish $started[$one.id] $one.wait_s
    $made = @()
    if ($end.job -and $end.state -eq 'done') {
      $made = @(Get-CimAssociatedInstance -InputObject $started[$one.id].Job -ResultClassName Msvm_VirtualSystemReferencePoint)
    }
    @{ state = $end.state; job = $end.job
      points = @($made | Select-Object -Property InstanceID, ReferencePointType, VirtualDiskIdentifiers, ResilientChangeTrackingIdentifiers) }
  }
}
