# The cluster that this node is in: its nodes, its shared volumes and which node coordinates each, roles that are on their way.
param($request)
Step 'cluster' {
  @{
    name = (Get-Cluster).Name
    nodes = @(Get-ClusterNode | ForEach-Object { @{ name = $_.Name; state = "$($_.State)" } })
    pending = @(Get-ClusterGroup | Where-Object { "$($_.GroupType)" -eq 'VirtualMachine' -and "$($_.State)" -eq 'Pending' } | ForEach-Object { $_.Name })
    volumes = @(Get-ClusterSharedVolume | ForEach-Object {
      @{ name = $_.Name; coordinator = $_.OwnerNode.Name; paths = @($_.SharedVolumeInfo | ForEach-Object { $_.FriendlyVolumeName }) }
    })
  }
}
