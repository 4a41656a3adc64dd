# What the host says of virtual disk files, open or not: the embedded instance, parsed in Python.
param($request)
$images = Get-CimInstance -Namespace $ns -ClassName Msvm_ImageManagementService
foreach ($one in $request.files) {
  Step $one.id {
    $result = Invoke-CimMethod -InputObject $images -MethodName GetVirtualHardDiskSettingData -Arguments @{ Path = $one.path }
    @{ code = $result.ReturnValue; text = $result.SettingData }
  }
}
