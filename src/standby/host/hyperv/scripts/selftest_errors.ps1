# Fails in ways that are known, once each, and once not at all.
param($request)
Step 'query' {
  $rows = @(Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem -Filter 'Name==')
  @{ texts = @($rows | ForEach-Object { $_.Name }) }
}
Step 'file' { @{ texts = @("$([IO.File]::GetAttributes($request.missing))") } }
Step 'thrown' { throw 'thrown by the self-test' }
Step 'code' { throw @{ kind = 'ReturnValue'; message = 'the method returned 32775'; wmi = 32775 } }
Step 'sound' { @{ texts = @('sound') } }
