# Destroys recovery snapshots, by InstanceID; one that is gone is well. Nothing but a recovery snapshot is touched.
param($request)
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSnapshotService
foreach ($one in $request.machines) {
  Step $one.id {
    $snapshot = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Filter "InstanceID='$($one.snapshot)'"
    if ($null -eq $snapshot) { return @{ state = 'gone' } }
    if ($snapshot.VirtualSystemType -notlike '*:Snapshot:Recovery') { return @{ state = 'refused'; type = $snapshot.VirtualSystemType } }
    $end = Finish (Invoke-CimMethod -InputObject $service -MethodName DestroySnapshot -Arguments @{ AffectedSnapshot = $snapshot }) $one.wait_s
    @{ state = $end.state; job = $end.job }
  }
}
