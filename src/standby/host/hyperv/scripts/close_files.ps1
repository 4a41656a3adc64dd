# Which of these files clients have open through SMB; of the clients named for a file exactly its open files are closed, where asked.
param($request)
$all = @(Get-SmbOpenFile)
foreach ($one in $request.files) {
  Step $one.id {
    $open = @($all | Where-Object { $_.Path -eq $one.path })
    if ($one.close) {
      foreach ($each in @($open | Where-Object { $one.clients -contains $_.ClientComputerName })) {
        Close-SmbOpenFile -FileId $each.FileId -SessionId $each.SessionId -Force
      }
    }
    @{ open = @($open | ForEach-Object { @{ client = "$($_.ClientComputerName)"; user = "$($_.ClientUserName)" } }) }
  }
}
