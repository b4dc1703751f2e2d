// Makes FakeTensorMode's tensors on "cuda" work on a build of torch for the CPU: entering a device
// and leaving it again does nothing.
#include <c10/core/impl/DeviceGuardImplInterface.h>

extern "C" void register_guard() {
  constexpr auto cuda = c10::DeviceType::CUDA;
  static c10::impl::NoOpDeviceGuardImpl<cuda> guard;
  if (!c10::impl::hasDeviceGuardImpl(cuda)) c10::impl::registerDeviceGuard(cuda, &guard);
}
