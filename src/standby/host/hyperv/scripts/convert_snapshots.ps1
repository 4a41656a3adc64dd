# Converts recovery snapshots, by InstanceID, to reference points; Hyper-V merges what the VM wrote meanwhile. In rounds, as snapshots are made.
param($request)
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSnapshotService
$started = @{}
$failed = @{}
foreach ($round in $request.rounds) {
  $these = @($request.machines | Where-Object { $_.round -eq $round })
  foreach ($one in $these) {
    try {
      $there = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "InstanceID='$($one.snapshot)'")
      if ($there.Count -gt 0) {
        $started[$one.id] = Invoke-CimMethod -InputObject $service -MethodName ConvertToReferencePoint -Arguments @{ AffectedSnapshot = $there[0] }
      }
    } catch { $failed[$one.id] = $_ }
  }
  foreach ($one in $these) {
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
}
