# Prepares a program that uses hart for Windows: hart_on_windows(TARGET)
function(hart_on_windows target)
  if(NOT WIN32)
    return()
  endif()
  # Makes the program's arguments UTF-8, in which hart takes strings.
  if(MSVC)
    target_sources(${target} PRIVATE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/utf8.manifest)
  else()
    target_sources(${target} PRIVATE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/utf8.rc)
    target_include_directories(${target} PRIVATE $<$<COMPILE_LANGUAGE:RC>:${CMAKE_CURRENT_FUNCTION_LIST_DIR}>)
  endif()
  # Windows looks for DLLs next to the program.
  if(NOT HART_LINK_STATIC)
    add_custom_command(TARGET ${target} POST_BUILD
      COMMAND ${CMAKE_COMMAND} -E copy_if_different $<TARGET_FILE:hart::hart> $<TARGET_FILE_DIR:${target}>)
  endif()
endfunction()
