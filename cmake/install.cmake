# install.cmake - header, libraries, pkg-config file, CMake package, program, its completions and the model.
include(CMakePackageConfigHelpers)
add_library(dibit_default INTERFACE)
if(BUILD_SHARED_LIBS)
  target_link_libraries(dibit_default INTERFACE dibit_shared)
else()
  target_link_libraries(dibit_default INTERFACE dibit_static)
endif()
set_target_properties(dibit_default PROPERTIES EXPORT_NAME dibit)
install(TARGETS dibit_default dibit_static dibit_shared EXPORT dibit-targets)
install(FILES include/dibit.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

set(PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/dibit)
install(EXPORT dibit-targets NAMESPACE dibit:: DESTINATION ${PACKAGE_DIR})
configure_package_config_file(cmake/dibit-config.cmake.in dibit-config.cmake
  INSTALL_DESTINATION ${PACKAGE_DIR})
write_basic_package_version_file(dibit-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/dibit-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/dibit-config-version.cmake DESTINATION ${PACKAGE_DIR})
configure_file(cmake/dibit.pc.in dibit.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/dibit.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(TARGET dibit)
  install(TARGETS dibit)
  foreach(shell bash zsh fish)
    set(file ${CMAKE_CURRENT_BINARY_DIR}/completion.${shell})
    add_custom_command(OUTPUT ${file} DEPENDS dibit COMMAND dibit completion ${shell} > ${file})
    list(APPEND COMPLETIONS ${file})
  endforeach()
  add_custom_target(completions ALL DEPENDS ${COMPLETIONS})
  set(SHARE ${CMAKE_INSTALL_DATADIR})
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/completion.bash RENAME dibit
    DESTINATION ${SHARE}/bash-completion/completions)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/completion.zsh RENAME _dibit
    DESTINATION ${SHARE}/zsh/site-functions)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/completion.fish RENAME dibit.fish
    DESTINATION ${SHARE}/fish/vendor_completions.d)
  file(GLOB MODELS CONFIGURE_DEPENDS models/*.gguf)
  install(FILES ${MODELS} DESTINATION ${SHARE}/dibit/models)
endif()
