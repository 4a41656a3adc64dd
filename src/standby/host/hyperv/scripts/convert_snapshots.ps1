# Converts recovery snapshots, by InstanceID, to reference points; Hyper-V merges what the VM wrote meanwhile. In rounds, as snapshots are made.
param($request)
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSnapshotService
foreach ($round in $request.rounds) {
  $these = @($request.machines | Where-Object { $_.round -eq $round })
  $begun = @{}
  foreach ($one in $these) {
    $begun[$one.id] = Step $one.id {
      $there = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "InstanceID='$($one.snapshot)'")
      if ($there.Count -eq 0) { return @{ state = 'gone' } }
      @{ state = 'begun'; call = (Invoke-CimMethod -InputObject $service -MethodName ConvertToReferencePoint -Arguments @{ AffectedSnapshot = $there[0] }) }
    }
  }
  foreach ($one in $these) {
    $start = $begun[$one.id]
    if ($start.ContainsKey('error') -or $start.value.state -eq 'gone') { $start; continue }
    Step $one.id {
      $end = Finish $start.value.call $one.wait_s
      $made = @()
      if ($end.job -and $end.state -eq 'done') {
        $made = @(Get-CimAssociatedInstance -InputObject $start.value.call.Job -ResultClassName Msvm_VirtualSystemReferencePoint)
      }
      @{ state = $end.state; job = $end.job
        points = @($made | Select-Object -Property InstanceID, ReferencePointType, VirtualDiskIdentifiers, ResilientChangeTrackingIdentifiers) }
    }
  }
}
