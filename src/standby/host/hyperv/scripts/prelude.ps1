# What stands before every script (payload.py puts it there). No logic: that lives in Python.
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 2.0
$ns = 'root\virtualization\v2'

# An error record as plain values; a hashtable that was thrown says for itself what it is.
function Failure {
  param($record)
  $thrown = $record.TargetObject
  if ($thrown -is [hashtable] -and $thrown.ContainsKey('wmi')) { return $thrown }
  @{
    kind = "$($record.FullyQualifiedErrorId)"
    message = "$($record.Exception.Message)"
    category = "$($record.CategoryInfo.Category)"
    hresult = $record.Exception.HResult
  }
}

# The work for one VM, as one object: its value, or its error. One bad VM never hides the others.
function Step {
  param($stepId, $stepBlock)
  try { @{ id = "$stepId"; value = (& $stepBlock) } }
  catch { @{ id = "$stepId"; error = (Failure $_) } }
}

# Waits for what a CIM method began. state: done, or unfinished with the job's InstanceID, so that
# the job can be adopted later. Whatever failed is thrown, with the code that WMI gave.
function Finish {
  param($begun, $seconds)
  $code = $begun.ReturnValue
  if ($code -eq 0) { return @{ state = 'done'; job = $null } }
  if ($code -ne 4096) { throw @{ kind = 'ReturnValue'; message = "the method returned $code"; wmi = $code } }
  $job = Get-CimInstance -InputObject $begun.Job
  $until = (Get-Date).AddSeconds($seconds)
  while ($job.JobState -lt 7 -and (Get-Date) -lt $until) {
    Start-Sleep -Milliseconds 250
    $job = Get-CimInstance -InputObject $job
  }
  if ($job.JobState -lt 7) { return @{ state = 'unfinished'; job = $job.InstanceID } }
  if ($job.JobState -eq 7 -or $job.JobState -eq 32768) { return @{ state = 'done'; job = $job.InstanceID } }
  throw @{ kind = 'Job'; message = "job state $($job.JobState): $($job.ErrorDescription)"; wmi = $job.ErrorCode }
}

# A CIM instance as the text that WMI methods take embedded instances as.
function ToText {
  param($instance)
  $writer = [Microsoft.Management.Infrastructure.Serialization.CimSerializer]::Create()
  $options = [Microsoft.Management.Infrastructure.Serialization.InstanceSerializationOptions]::None
  [Text.Encoding]::Unicode.GetString($writer.Serialize($instance, $options))
}

# Runs the script and writes its answer between sentinels; base64, so that no code page can touch it.
# `Remove-TypeData` is not needed here: what 5.1 makes of a wrapped array is undone in Python.
function Answer {
  param($verb, $text, $mark)
  try {
    $request = ConvertFrom-Json -InputObject ([Text.Encoding]::UTF8.GetString([Convert]::FromBase64String($text)))
    $said = @{ steps = @(& $verb $request) }
  } catch { $said = @{ error = (Failure $_) } }
  $bytes = [Text.Encoding]::UTF8.GetBytes((ConvertTo-Json -InputObject $said -Depth 32 -Compress))
  $form = 'plain'
  if ($bytes.Length -gt 65536) {
    $form = 'deflate'
    $packed = [IO.MemoryStream]::new()
    $packer = [IO.Compression.DeflateStream]::new($packed, [IO.Compression.CompressionMode]::Compress)
    $packer.Write($bytes, 0, $bytes.Length)
    $packer.Dispose()
    $bytes = $packed.ToArray()
  }
  $body = [Convert]::ToBase64String($bytes)
  [Console]::Out.Write("`n<standby $mark $form $($body.Length)>`n$body`n</standby $mark>`n")
}
