# tests.cmake - one cmocka program for each tests/NAME.c that has a main(); tests/NAME_part.c without
# one belongs to NAME. tests/fuzz/NAME.c is a fuzz target, or a replay of its saved inputs. Shell tests
# find what they need in the environment. Exit code 77 means skipped.
file(GLOB TEST_SOURCES CONFIGURE_DEPENDS tests/*.c)
foreach(src ${TEST_SOURCES})
  get_filename_component(name ${src} NAME_WE)
  file(STRINGS ${src} main REGEX "^int main\\(")
  if(main)
    list(APPEND TEST_NAMES ${name})
    list(APPEND SOURCES_${name} ${src})
  else()
    string(REGEX REPLACE "_.*" "" owner ${name})
    list(APPEND SOURCES_${owner} ${src})
  endif()
endforeach()
set(SLOWNESS 1) # limits of time in tests are multiplied with it
if(DIBIT_SANITIZE)
  set(SLOWNESS 10)
endif()
# A program of a test: everything but app/main.c is linked in.
function(add_test_program target)
  add_executable(${target} ${ARGN} $<TARGET_OBJECTS:app_objects> $<TARGET_OBJECTS:gpu_objects>
    $<TARGET_OBJECTS:dibit_objects>)
  target_compile_definitions(${target} PRIVATE SOURCE_DIR="${CMAKE_SOURCE_DIR}"
    BUILD_DIR="${CMAKE_BINARY_DIR}" PROGRAM="$<TARGET_FILE:dibit>"
    SLOWNESS=${SLOWNESS})
  target_link_libraries(${target} app_objects gpu_objects)
endfunction()
# Tests may run the program.
foreach(name ${TEST_NAMES})
  add_test_program(test_${name} ${SOURCES_${name}})
  target_link_libraries(test_${name} ${CMOCKA_LIBRARY})
  add_dependencies(test_${name} dibit)
  add_test(NAME ${name} COMMAND test_${name})
  list(APPEND TESTS ${name})
endforeach()

# tests/gpu_faults.c stands before these functions of gpu.h.
foreach(name open caps buffer write kernel bind submit read_start read_ready)
  target_link_options(test_gpu_faults PRIVATE -Wl,--wrap=gpu_${name})
endforeach()

add_custom_target(fuzzers)
file(GLOB FUZZ_SOURCES CONFIGURE_DEPENDS tests/fuzz/*.c)
list(FILTER FUZZ_SOURCES EXCLUDE REGEX "regression_driver")
foreach(src ${FUZZ_SOURCES})
  get_filename_component(name ${src} NAME_WE)
  if(DIBIT_FUZZ)
    add_test_program(fuzz_${name} ${src})
    target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
    add_dependencies(fuzzers fuzz_${name})
  else()
    add_test_program(fuzz_${name} ${src} tests/fuzz/regression_driver.c)
    add_test(NAME fuzz_${name} COMMAND fuzz_${name} tests/fuzz/corpus/${name})
    list(APPEND TESTS fuzz_${name})
  endif()
endforeach()

add_test(NAME example_kv COMMAND example_kv)
list(APPEND TESTS example_kv)
foreach(name includes install neon greedy wasm package bundle cli shaders)
  if(EXISTS ${CMAKE_SOURCE_DIR}/tests/${name}.sh)
    add_test(NAME ${name}.sh COMMAND sh tests/${name}.sh)
    list(APPEND TESTS ${name}.sh)
  endif()
endforeach()
if(TESTS)
  set_tests_properties(${TESTS} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 900
    WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
    ENVIRONMENT "DIBIT_BUILD=${CMAKE_BINARY_DIR};DIBIT_CC=${CMAKE_C_COMPILER};DIBIT_SANITIZE=${DIBIT_SANITIZE}")
endif()
