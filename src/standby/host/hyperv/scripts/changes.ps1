# Which bytes of frozen disks may have changed since an RCT id: one line per call, offsets then lengths, until the disk ends.
param($request)
$images = Get-CimInstance -Namespace $ns -ClassName Msvm_ImageManagementService
foreach ($one in $request.machines) {
  Step $one.id {
    $vm = @(Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem -Filter "Name='$($one.id)'")
    $points = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemReferencePoint -Filter "VirtualSystemIdentifier='$($one.id)'")
    $applied = @($vm | ForEach-Object { Get-CimAssociatedInstance -InputObject $_ -Association Msvm_LastAppliedSnapshot -ResultClassName Msvm_VirtualSystemSettingData })
    $disks = @(foreach ($disk in $one.disks) {
      $lines = @()
      $code = 0
      $message = ''
      $size = [uint64]$disk.size
      $start = [uint64]0
      try {
        while ($code -eq 0 -and $start -lt $size) {
          $result = Invoke-CimMethod -InputObject $images -MethodName GetVirtualDiskChanges -Arguments @{
            Path = $disk.path; LimitId = $disk.limit; ByteOffset = $start; ByteLength = [uint64]($size - $start) }
          $code = $result.ReturnValue
          if ($code -ne 0 -or $result.ProcessedByteLength -eq 0) { break }
          $lines += "$($result.ChangedByteOffsets -join ',');$($result.ChangedByteLengths -join ',')"
          $start = [uint64]($start + $result.ProcessedByteLength)
        }
      } catch { $code = -1; $message = "$($_.Exception.Message)" }
      @{ place = $disk.place; code = $code; message = $message; processed = $start; lines = $lines -join "`n" }
    })
    @{
      points = @($points | Select-Object -Property InstanceID, ReferencePointType, VirtualDiskIdentifiers, ResilientChangeTrackingIdentifiers)
      applied = @($applied | ForEach-Object { $_.InstanceID })
      disks = @($disks)
    }
  }
}
