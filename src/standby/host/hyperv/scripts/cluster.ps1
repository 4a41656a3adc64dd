# The cluster that this node is in: its nodes, its shared volumes and which node coordinates each.
param($request)
Step 'cluster' {
  @{
    name = (Get-Cluster).Name
    nodes = @(Get-ClusterNode | ForEach-Object { @{ name = $_.Name; state = "$($_.State)" } })
    volumes = @(Get-ClusterSharedVolume | ForEach-Object {
      @{ name = $_.Name; coordinator = $_.OwnerNode.Name; paths = @($_.SharedVolumeInfo | ForEach-Object { $_.FriendlyVolumeName }) }
    })
  }
}
