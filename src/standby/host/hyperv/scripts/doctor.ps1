# How the host stands: its system and clock, the account and its groups, Hyper-V's services, its cluster, its shares.
param($request)
Step 'system' {
  @{ systems = @(Get-CimInstance -ClassName Win32_OperatingSystem -Property Caption, BuildNumber, LocalDateTime |
    Select-Object -Property Caption, BuildNumber, LocalDateTime) }
}
Step 'account' {
  $me = [Security.Principal.WindowsIdentity]::GetCurrent()
  @{ account = $me.Name; groups = @($me.Groups | ForEach-Object { $_.Value }) }
}
Step 'services' {
  $management = @(Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemManagementService | Select-Object -Property Name, Started)
  $images = @(Get-CimInstance -Namespace $ns -ClassName Msvm_ImageManagementService | Select-Object -Property Name, Started)
  @{ services = @($management) + @($images) }
}
Step 'cluster' {
  @{ clusters = @(Get-CimInstance -Namespace 'root\mscluster' -ClassName MSCluster_Cluster | Select-Object -Property Name) }
}
Step 'shares' {
  @{ shares = @(foreach ($share in @(Get-SmbShare)) {
    @{
      name = $share.Name
      path = $share.Path
      special = $share.Special
      access = @(Get-SmbShareAccess -Name $share.Name | ForEach-Object { "$($_.AccessControlType):$($_.AccessRight):$($_.AccountName)" })
    }
  }) }
}
