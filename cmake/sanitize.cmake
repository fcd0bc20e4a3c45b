# Sanitizers reach every target, so that the core and its tests agree.
set(ALA_SANITIZE "" CACHE STRING "Sanitizer of core and tests: address (with undefined), thread, or empty")
set_property(CACHE ALA_SANITIZE PROPERTY STRINGS "" address thread)

if(ALA_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=address,undefined)
elseif(ALA_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=thread)
elseif(ALA_SANITIZE)
  message(FATAL_ERROR "ALA_SANITIZE must be address, thread or empty, got '${ALA_SANITIZE}'")
endif()

# Instrumented kernels take minutes to compile at -O3. The code for all instruction sets is the same, so
# undefined behaviour, the slowest check to compile, is looked for in the baseline only; addresses in all.
function(ala_make_sanitizing_cheap)
  foreach(source IN LISTS ARGN)
    get_source_file_property(flags "${source}" COMPILE_OPTIONS)
    if(flags)
      list(REMOVE_ITEM flags -O3)
      list(APPEND flags -O1)
      if(ALA_SANITIZE STREQUAL "address" AND NOT source MATCHES "baseline")
        list(APPEND flags -fno-sanitize=undefined)
      endif()
      set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS "${flags}")
    endif()
  endforeach()
endfunction()
