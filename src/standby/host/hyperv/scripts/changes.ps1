# Which bytes of frozen disks may have changed since an RCT id: one line per call, offsets then lengths, until the disk ends.
param($request)
$images = Get-CimInstance -Namespace $ns -ClassName Msvm_ImageManagementService
foreach ($one in $request.disks) {
  Step $one.id {
    $lines = @()
    $code = 0
    $size = [uint64]$one.size
    $start = [uint64]0
    while ($code -eq 0 -and $start -lt $size) {
      $result = Invoke-CimMethod -InputObject $images -MethodName GetVirtualDiskChanges -Arguments @{
        Path = $one.path; LimitId = $one.limit; ByteOffset = $start; ByteLength = [uint64]($size - $start) }
      $code = $result.ReturnValue
      if ($code -ne 0 -or $result.ProcessedByteLength -eq 0) { break }
      $lines += "$($result.ChangedByteOffsets -join ',');$($result.ChangedByteLengths -join ',')"
      $start = [uint64]($start + $result.ProcessedByteLength)
    }
    @{ code = $code; processed = $start; lines = $lines -join "`n" }
  }
}
