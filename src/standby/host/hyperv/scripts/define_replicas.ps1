# Makes VMs, off and bare, unless one has the note already: the note is there from the moment the VM is.
param($request)
$class = Get-CimClass -Namespace $ns -ClassName Msvm_VirtualSystemSettingData
$service = Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemManagementService
function Noted {
  param($note)
  @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData -Property VirtualSystemIdentifier, VirtualSystemType, Notes |
    Where-Object { $_.VirtualSystemType -eq 'Microsoft:Hyper-V:System:Realized' } |
    Where-Object { "$($_.Notes)" -eq $note } | ForEach-Object { $_.VirtualSystemIdentifier })
}
foreach ($one in $request.replicas) {
  Step $one.id {
    $there = @(Noted $one.note)
    if ($there.Count -gt 0) { return @{ machine = $there[0]; is_new = $false } }
    $values = @{
      ElementName = $one.name
      Notes = @($one.note)
      VirtualSystemSubType = "Microsoft:Hyper-V:SubType:$($one.generation)"
      ConfigurationDataRoot = $one.folder
      SnapshotDataRoot = $one.folder
      SuspendDataRoot = $one.folder
      SwapFileDataRoot = $one.folder
      AutomaticStartupAction = [uint16]2
      UserSnapshotType = [uint16]2
    }
    if ($one.version) { $values['Version'] = $one.version }
    $text = ToText (New-CimInstance -ClientOnly -CimClass $class -Property $values)
    $null = Finish (Invoke-CimMethod -InputObject $service -MethodName DefineSystem -Arguments @{ SystemSettings = $text }) $one.wait_s
    $there = @(Noted $one.note)
    if ($there.Count -eq 0) { throw "the host made no VM with the note $($one.note)" }
    @{ machine = $there[0]; is_new = $true }
  }
}
